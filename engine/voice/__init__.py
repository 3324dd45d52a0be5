"""A voice as a folder that is not trusted, and what each of its networks takes and gives."""
