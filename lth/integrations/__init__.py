"""What other frameworks need to use this library; each module needs its framework. Uses lth.testing."""
