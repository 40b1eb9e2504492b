"""The long-lived local service of a site: model and cohort kept warm behind a Unix socket, asked by the courier."""
