"""Loss terms of Lens training: each module holds one, and adding a module adds a term."""
