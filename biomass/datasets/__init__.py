"""Sources of Screens, a module each with a function ``load_…``, and what they share: ``files``, ``download``.

A source reads tables and hands back a :class:`biomass.screen.Screen`. Nothing is imported here: no source pays for the
libraries of another.
"""
