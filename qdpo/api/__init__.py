"""qdpo from Python: the functions and classes that `import qdpo` offers, of which the command line is a shell."""
