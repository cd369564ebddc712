"""The parts of make.py: how graphs are written and checked, and a module or package for each model."""
