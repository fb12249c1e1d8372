"""A plug-in for fxdistill: a loss with parameters, a criterion, and a method that uses them."""
