"""The lens: a local web page that shows theory and measurement while you change h, f and the depth."""
