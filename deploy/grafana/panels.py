"""Panels and dashboards as Grafana's JSON has them (schema 39, Grafana 10 and later)."""

WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Blue for memory, then colder; the same on every dashboard.
TIER_COLORS = {"dram": "#3274d9", "nvme": "#37872d", "object": "#e0b400"}


def query(expression, legend="{{__name__}}"):
    """One line, or one line a label's value."""
    return {"expr": " ".join(expression.split()), "legendFormat": legend}


def graph(title, queries, unit="short", text="", stacked=False, top=None, width=8, height=8):
    """Lines over time; `top` is the end of the axis."""
    lines = {"lineWidth": 1, "fillOpacity": 25 if stacked else 8, "showPoints": "never", "spanNulls": False}
    lines["stacking"] = {"mode": "normal" if stacked else "none", "group": "A"}
    defaults = {"unit": unit, "min": 0, "color": {"mode": "palette-classic"}, "custom": lines}
    if top is not None:
        defaults["max"] = top
    colors = [
        {
            "matcher": {"id": "byName", "options": tier},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
        }
        for tier, color in TIER_COLORS.items()
    ]
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, queries, text, width, height, defaults, options, colors)


def figure(title, expression, unit="short", text="", warn=None, bad=None, low_is_bad=False, width=4):
    """One number now. `warn` and `bad` color it from there on, or below there."""
    steps = [{"color": "green", "value": None}]
    if low_is_bad:
        steps[0]["color"] = "red" if bad is not None else "orange"
        marks = [(bad, "orange" if warn is not None else "green"), (warn, "green")]
    else:
        marks = [(warn, "orange"), (bad, "red")]
    steps += [{"color": color, "value": mark} for mark, color in marks if mark is not None]
    if warn is None and bad is None:
        steps = [{"color": "text", "value": None}]
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    return _panel("stat", title, [query(expression, "")], text, width, 4, defaults, options, [])


def bars(title, expression, legend, unit="short", text="", top=None, width=8, height=8):
    """One bar a label's value, now."""
    defaults = {"unit": unit, "min": 0, "color": {"mode": "continuous-BlPu"}}
    if top is not None:
        defaults["max"] = top
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return _panel("bargauge", title, [query(expression, legend)], text, width, height, defaults, options, [])


def row(title):
    """A heading over the panels that follow."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


def _panel(kind, title, queries, text, width, height, defaults, options, overrides):
    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "range": True, **each}
        for index, each in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": " ".join(text.split()),
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
        "gridPos": {"w": width, "h": height},
    }


def variable(name, label, metric):
    """A choice of the values that a label of a metric has."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({metric}, {name})", "refId": "values"},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }


def dashboard(uid, title, text, panels, variables=()):
    """A whole one; panels flow from left to right in rows."""
    x = y = tallest = 0
    placed = []
    for index, panel in enumerate(panels, start=1):
        size = panel["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        placed.append({**panel, "id": index, "gridPos": {**size, "x": x, "y": y}})
        x, tallest = x + size["w"], max(tallest, size["h"])
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}
    return {
        "uid": f"kelvin-{uid}",
        "title": f"Kelvin: {title}",
        "description": " ".join(text.split()),
        "tags": ["kelvin"],
        "schemaVersion": 39,
        "editable": True,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["kelvin"], "asDropdown": True, "title": "Kelvin", "keepTime": True}],
        "templating": {"list": [source, *variables]},
        "panels": placed,
    }
