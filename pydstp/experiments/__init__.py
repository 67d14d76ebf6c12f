"""Experiments on visual tokens that leave and return: evaluation, calibration, diagnosis.

`pydstp eval`, `pydstp calibrate` and `pydstp analyze` run them. They call the engine as a user
would; nothing here is needed to answer a prompt.
"""
