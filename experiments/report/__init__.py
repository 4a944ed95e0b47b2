"""The page that tables and runs are read on: one self-contained HTML file with charts and pictures, and the same as Markdown and JSON."""
