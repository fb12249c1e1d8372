"""The report: one HTML file that tells a run, several runs side by side, or a plan before anything trains.

    run directories, plans  ──told──▶  plain data  ──drawing──▶  geometry  ──templates──▶  one HTML file

What a run says is collected as plain data (:mod:`.told`), apart from how it is drawn (:mod:`.chart`, :mod:`.network`)
and from the markup (``*.jinja``). Charts are SVG that the templates write: the file needs no script at all, so that it
opens from disk with a policy that permits nothing (``default-src 'none'``), prints, reads well in a screen reader, and
takes some tens of kilobytes. The charting libraries that work offline (altair inline, plotly) carry 1 to 5 MB of
script into every file, and show nothing where scripts are off; what they give beyond is zooming, for which the figures
stand in tables beside the charts.

Names of classes, layers and paths come from files of others: everything goes through jinja2 with autoescape.
"""
