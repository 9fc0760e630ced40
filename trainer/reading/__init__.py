"""From the files that people have to rows of text: where files are, how they are read. No torch."""
