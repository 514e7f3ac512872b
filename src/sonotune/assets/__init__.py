"""Files that come with the package: nano models and the quickstart corpus, named `assets:NAME`."""
