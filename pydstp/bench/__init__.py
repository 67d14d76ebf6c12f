"""How fast a checkpoint runs here, against a cost model and against peers: `pydstp bench`."""
