PY := .venv/bin/python
install: .venv/.installed
