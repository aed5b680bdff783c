"""Sources of Screens, a module each: ``rxrx1``, ``manifest``, ``simulated``; what they share: ``files``, ``download``.

A source reads tables and hands back a :class:`biomass.screen.Screen`. Nothing is imported here, because a function
named as its module would hide it.
"""
