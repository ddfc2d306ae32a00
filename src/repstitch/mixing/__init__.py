"""Native and translated rows together: search them in one index, choose which to embed anew, merge lists, move a
threshold."""
