"""Ways in: a Dynamo graph or an ``nn.Module`` becomes a Program of functional pre-dispatch ATen."""
