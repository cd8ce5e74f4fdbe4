"""Finished videos are judged: metrics, a folder against another, table, JSON and page. docs/eval.md."""
