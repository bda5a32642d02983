"""The model and all that a saved checkpoint carries: the files of this folder import only each other."""
