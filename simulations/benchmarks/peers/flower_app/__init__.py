"""The apps of the Flower contestant, as its templates have them; copied by `flower` into a folder of their own."""
