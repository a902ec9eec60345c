"""A toolkit for peer-to-peer applications whose nodes do not reveal where they are."""
