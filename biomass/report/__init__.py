"""One page that says what was found: self-contained HTML, made from the files that a run has left in its folder."""
