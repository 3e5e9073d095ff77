"""Rows from files of every kind, from folders and from the hub, one at a time; what is no data is named."""
