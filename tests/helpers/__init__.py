"""What tests of several rooms share: made-up spaces whose answers are known, servers, and calls to them."""
