"""The demo model: its pictures, its training and its export. Not part of the installed package."""
