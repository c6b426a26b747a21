"""What a run is: dataclasses that tyro turns into command lines. Imports nothing heavy."""
