"""How updates of sites become one model: Flower adapter, sanity gate, strategies."""
