"""Public data sets as a datastore that the server opens, a module a data set."""
