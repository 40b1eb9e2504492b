"""A Flower app as its templates write one, with torch and Opacus in the ClientApp; copied into a folder of its own."""
