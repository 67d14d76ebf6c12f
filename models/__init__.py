"""Model families: what is computed. Imported as `pydstp.models`."""
