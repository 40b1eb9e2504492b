"""What a study is compared with: arms and baselines on the same women, and the table of what federating gained."""
