"""Names of models come in; likelihoods of responses and attention to segments go out, from one forward pass.

Read `config` (the pair's settings), `unnamed` (the paper's pair, where none is named), `notices` (lines while somebody waits),
`device`, `weight_files` and `fingerprints` (what tells weights from others), `loading` (from a name to what `from_pretrained`
takes), `rope`, `abilities` (what an architecture can be trusted with), `packing` (sequences of different lengths in one batch),
`masks` (for some rows), `collected` (what the response looks at), `flex` and `key_mass` (fused kernels of attention), `attention`
(of every layer, with the weights of the response's rows), `kernels` (which of torch's serves it), `last_layer` (rows that are read
alone), `perplexity` (Eq. 1), `prefill` (a context once, for many responses), `trial` (a few tokens, for models that nobody has
tried), `fused` (kernels that somebody asks for), `weights` (loaded when a row needs them), `pair` (both siblings).
"""
