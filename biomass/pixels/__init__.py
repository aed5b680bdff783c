"""How images lie on disk: image files, open handles, the packed store, the files of BBBC021 and their uneven light."""
