"""Where texts and values come from: files, tables, data sets of the hub, streams."""
