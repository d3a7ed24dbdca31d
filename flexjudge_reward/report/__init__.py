"""`flexjudge report`: a page that shows what a judge did."""
