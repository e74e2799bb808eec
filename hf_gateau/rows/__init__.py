"""A row comes in as a dict; a `Sample` goes out: the token spans prefix, context, instruction and response, and labels to train on.

Read `decoding` (values out of Arrow, pandas and JSON), `context_rules` (where in a turn the context stands), `conversations`
(checked turns, and where in them the context stands), `parts` (what a row says, as text to show), `rendering`
(the chat template's text and tokens), `places` (where in the text each turn stands), `samples`, `labels` (what training puts loss
on), `cutting` (rows longer than training takes), `batches` (what a scorer is handed and gives back, and the types of its columns),
`naming` (columns under other names), `cuts` (what was dropped to fit).
"""
