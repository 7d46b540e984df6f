"""What goes over the wire: how it is read, what it must look like, and the document that says so."""
