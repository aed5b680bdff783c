"""Sources of Screens: a module each with a function ``load_...``, and the downloads that they share."""
