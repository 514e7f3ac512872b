"""What tuning broke: panels of clips that are scored with the base model and with the tuned one, and compared.

A panel is one file and one line in `registry.PANELS` (`retention.base.PanelKind`). `retention.measure` scores them,
`retention.scales` scores an adapter at a part of its strength.
"""
