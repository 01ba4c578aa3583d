module minimax-m1.dev/cluster/probe

go 1.25.0
