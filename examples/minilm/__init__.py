"""all-MiniLM-L6-v2 in plain NumPy, for the tensor-parallel example `tp_minilm.py`."""
