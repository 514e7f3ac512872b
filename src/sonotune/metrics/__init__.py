"""Numbers that judge a model, each with the interval and the count that say how far to trust it.

`error_rate` counts edits, `slices` splits a score by what is known of the clips, `text` has translation metrics,
`intervals` says how sure a number is, `efficiency` measures memory, energy and speed. Nothing here knows of models.
"""
