"""What inference engines load of a child, and what of it can be rewritten exactly so that they do."""
