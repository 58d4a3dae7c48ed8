module example

go 1.19

require poolparty v0.0.0

replace poolparty => ../poolparty/sdk/go
