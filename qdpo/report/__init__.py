"""The model card and the plots, made from the run directory."""
