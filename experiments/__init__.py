"""What uses the whole project to show or find something out; each module is a command and a set of functions."""
