"""Proving an export: is it whole, is it the merged model, does it prefer what the trained model prefers?"""
