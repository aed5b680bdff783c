"""How images lie on disk: image files, open handles, the packed store and its writer."""
