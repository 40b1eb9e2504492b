"""What a hospital gained: the shared model beside its own and public weights, on its own test women; `site gain`."""
