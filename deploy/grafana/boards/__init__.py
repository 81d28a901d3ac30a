"""The dashboards, one file each."""

from deploy.grafana.boards import fleet, overview, ratio_health, stream, weights

BOARDS = (overview.BOARD, ratio_health.BOARD, fleet.BOARD, weights.BOARD, stream.BOARD)
