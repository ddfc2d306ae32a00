"""Tables of LanceDB in a local folder."""
