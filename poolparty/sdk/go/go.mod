module poolparty

go 1.19
